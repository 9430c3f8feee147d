"""Demonstrations: recorded bags → episodes → the formats of every trainer, and whether they are
good.

`bag_writer` writes what the recorder receives, `bag` reads it as an `Episode` the way the live
node would have seen it, `hdf5`, `rlds` and `lerobot` write training sets, `statistics` their
bounds, `quality` and `doctor` judge them. No ROS. Most of it needs the extra `data`.
"""
