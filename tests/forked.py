"""The programs of experiments/ in processes of their own, without importing torch for each.

A server imports them all, computes nothing, and forks for every job that it is told. A child may be
told to die by SIGKILL at its n-th write of a file: when half of it is on the disk, when it is whole but not yet
in its place, or just after; or to find the disk full. That is more than a kill at a random moment can
show: between two writes nothing changes that outlives the process.
"""

import importlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAPERS = ["sam", "convex_hull", "pes", "nbeats", "ridge_rider", "decision_transformer",
          "sensory_neuron", "bmg", "epsilon", "embeddings"]  # fmt: skip


class Server:
    """Runs programs: `server("sam", ["--tiny"])` gives a list of (status, stderr, writes), one a rank.

    status: the exit code, or minus the signal that ended the process. die: (n, "half" | "whole" |
    "after"); full: no file may grow beyond 64 bytes.
    """

    def __init__(self):
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen([sys.executable, "-m", "tests.forked"], cwd=ROOT, env=env,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip

    def __call__(self, paper, argv, ranks=1, die=None, full=False):
        job = {
            "paper": paper,
            "argv": [str(a) for a in argv],
            "ranks": ranks,
            "die": die,
            "full": full,
        }
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def watch(die):
    """Count the files that are put in their place, and die at the one told."""
    sync, replace, count = os.fsync, os.replace, [0]

    def end():
        os.kill(os.getpid(), signal.SIGKILL)

    def fsync(fd):
        if die and die[0] == count[0] + 1 and die[1] == "half":
            os.ftruncate(fd, os.fstat(fd).st_size // 2)
            end()
        sync(fd)

    def put(part, path):
        count[0] += 1
        due = die and die[0] == count[0]
        if due and die[1] == "whole":
            end()
        replace(part, path)
        if due:
            end()

    os.fsync, os.replace = fsync, put
    return count


def child(module, job, rank, port, out, said):
    os.dup2(said, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if job["ranks"] > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(job["ranks"]),
                          MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))  # fmt: skip
    if job["full"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))
    count, code = watch(job["die"]), 1
    try:
        module.main(job["argv"])
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
        print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os.write(out, str(count[0]).encode())
        os._exit(code)


def serve():
    for name in ("torch._dynamo", "sklearn.datasets", "statsmodels.api", "tqdm"):  # each once, too
        importlib.import_module(name)
    modules = {paper: importlib.import_module(f"experiments.{paper}") for paper in PAPERS}
    for line in sys.stdin:
        job, port, children, found = json.loads(line), free_port(), [], []
        for rank in range(job["ranks"]):
            (said, says), (count, counts) = os.pipe(), os.pipe()
            pid = os.fork()
            if pid == 0:
                child(modules[job["paper"]], job, rank, port, counts, says)
            os.close(says)
            os.close(counts)
            children.append((pid, said, count))
        for pid, said, count in children:
            text = os.fdopen(said, errors="replace").read()
            writes = os.fdopen(count).read()
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            found.append((status, text, int(writes or -1)))
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    serve()
