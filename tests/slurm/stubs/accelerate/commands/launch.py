"""One node's share of `accelerate launch`, without torch: the nodes meet at the address, then each starts its ranks."""

import os
import socket
import subprocess
import sys
import time


def option(name: str, default: str) -> str:
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


machines, machine = int(option("--num_machines", "1")), int(option("--machine_rank", "0"))
world = int(option("--num_processes", "1"))
module = sys.argv[sys.argv.index("-m") + 1 :]
if machines > 1:
    address = (option("--main_process_ip", ""), int(option("--main_process_port", "")))
    if machine == 0:
        server = socket.create_server(("", address[1]))
        server.settimeout(30)
        guests = [server.accept() for _ in range(machines - 1)]
        time.sleep(0.5)  # long enough to be in the way of another job that chose the same port
    else:
        for _ in range(300):
            try:
                socket.create_connection(address, 5)
                break
            except OSError:
                time.sleep(0.1)
        else:
            sys.exit(f"nobody at {address}")
each = world // machines
ranks = [
    subprocess.Popen(
        [sys.executable, "-m", *module],
        env={**os.environ, "RANK": str(machine * each + local), "LOCAL_RANK": str(local), "WORLD_SIZE": str(world)},
    )
    for local in range(each)
]
while any(rank.poll() is None for rank in ranks):
    if any(rank.poll() for rank in ranks):
        for rank in ranks:
            rank.terminate()
    time.sleep(0.05)
sys.exit(any(rank.returncode for rank in ranks))
