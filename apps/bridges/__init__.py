"""The demonstration of bridges: messages through each of them, while everything is killed once."""
