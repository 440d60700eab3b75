"""Settings of an experiment: defaults.toml, a TOML file of overrides per domain, and the flags that win over both."""
