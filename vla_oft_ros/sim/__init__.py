"""A physically simulated ALOHA and a scripted teleoperator for it: MuJoCo and numpy, no ROS.

`aloha_world` is the robot and its surroundings, `tasks` what is to be done there, `demonstrator`
who can do it. `scene` and `rendering` serve `aloha_world`. Needs the extra `sim` (mujoco, and the
assets of the gym-aloha wheel).
"""
