"""The rim: the only folder that may import rclpy, messages and launch. Its files translate and
wire, nothing else.
"""
