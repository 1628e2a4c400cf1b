"""Alerts without Prometheus: the workers decide what fires, and tell a topic, webhooks and e-mail."""
