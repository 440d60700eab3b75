"""One meta-update by what a user would pick instead, side by side: a process for each library."""
