"""`ray start` of several nodes on one machine, on loopback alone: `python on_loopback.py start ...`.

Ray turns 127.0.0.1 back into the machine's own address and listens everywhere. Its switch for "this machine only"
(RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0, for all that a node starts) keeps it on loopback, and then refuses a second node.
"""

import os

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"

from ray._private import ray_constants, services
from ray.scripts.scripts import main

services.get_node_ip_address = lambda *_: "127.0.0.1"
ray_constants.ENABLE_RAY_CLUSTER = True  # in this process alone: the refusal is meant for other systems
main()
