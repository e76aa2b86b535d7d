"""The programs as people start them, their flags and their pages."""
