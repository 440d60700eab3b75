"""The machinery of experiments: training sessions, run folders, meta-tests, reports, networks."""
