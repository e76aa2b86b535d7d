"""What an evaluation and a training run look like: report.html of test.py, and curves of runs side by side."""
