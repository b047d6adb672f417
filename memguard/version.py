"""The version, in the one place that the build, the reports and the hosts read."""

VERSION = "0.1.0"
