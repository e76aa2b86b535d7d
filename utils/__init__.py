"""What everybody needs and nobody owns: errors, files, programs, processes, devices. It imports no other folder."""
