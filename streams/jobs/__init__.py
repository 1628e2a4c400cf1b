"""A durable task queue on Kafka: functions whose calls are recorded in a topic and executed by workers."""
