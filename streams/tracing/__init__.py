"""OpenTelemetry spans of what an app does, and their contexts in the headers of records."""
