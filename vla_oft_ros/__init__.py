"""OpenVLA-OFT+ with SpecPrune on a bimanual ALOHA under ROS 2.

This file stays empty of imports on purpose: `import vla_oft_ros` costs nothing and needs neither
torch nor ROS. The path is extended so that the generated messages (`vla_oft_ros.msg`, made by
CMake) are found even when this source tree or a pip copy comes first on the Python path.
"""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
__version__ = "0.1.0"
