"""DDS security for the nodes: from a policy of SROS 2 to keys and signed permissions.

`policy` turns a policy file into what the middleware enforces, `keystore` makes keys, signs and
lays everything out as `ros2 security` does. Knows no ROS.
"""
