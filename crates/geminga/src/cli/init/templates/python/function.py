"""Puts a mark behind each message, and counts them. Written for Apache Pulsar's functions SDK."""

from pulsar import Function


class Exclaim(Function):
    def process(self, input, context):
        text = str(input)
        if not text:
            raise ValueError("the message is empty")
        context.incr_counter("seen", 1)
        context.get_logger().info("got %d characters", len(text))
        return text + (context.get_user_config_value("mark") or "!")
