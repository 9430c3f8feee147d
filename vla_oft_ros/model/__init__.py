"""The network: one file per box of the OpenVLA-OFT+ figure. Knows torch, nothing of ROS or of
files but in `checkpoint`.
"""
