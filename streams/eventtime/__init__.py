"""Event time: windows, stream time, and the processing order of several inputs."""
