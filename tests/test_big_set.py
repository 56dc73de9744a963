"A set as large as all of Human3.6M: made, written, and opened in a moment without being read."
import json
import subprocess
import sys
import time

import psutil
import pytest
import torch

from poseprojects.camera import project, world_to_camera
from poseprojects.data.base import PoseSet, save
from poseprojects.data.cmu import cameras
from poseprojects.data.sources import example_people
from poseprojects.skeleton import H36M17

SEQUENCES, CAMERAS, FRAMES = 600, 4, 650 # 1.56 million samples
OPEN = """
import json, sys, time, psutil, torch
from poseprojects.data.base import open_set
torch.zeros(3).sum().item()
process = psutil.Process()
before, began = process.memory_info().rss, time.perf_counter()
poses = open_set(sys.argv[1])
facts = len(poses), poses.skeleton.num_joints, len(poses.sequence_names), poses.fingerprint, poses.name
seconds, opened = time.perf_counter() - began, process.memory_info().rss
first, last = poses.pose_3d[0].tolist(), poses.pose_2d[-1].tolist()
touched = process.memory_info().rss
poses.pose_3d.sum()
print(json.dumps({"facts": facts, "seconds": seconds, "opened": opened - before, "touched": touched - before, "read": process.memory_info().rss - before, "first": first, "last": last}))
"""

def big_set():
    "One person on the spot before four cameras, again and again."
    clip, = example_people(H36M17, FRAMES)
    world = torch.as_tensor(clip.pose)
    world[..., :2] -= world[:, H36M17.root:H36M17.root + 1, :2].clone()
    eyes = [cameras()[torch.full((FRAMES,), c)] for c in range(CAMERAS)]
    seen = torch.cat([world_to_camera(world, eye) for eye in eyes])
    pixels = torch.cat([project(part, eye) for part, eye in zip(seen.split(FRAMES), eyes)])
    again = lambda x: x.float().expand(SEQUENCES, *x.shape).reshape(-1, *x.shape[1:])
    ids = torch.arange(SEQUENCES * CAMERAS * FRAMES)
    return PoseSet.create(name="big", skeleton=H36M17, cameras=cameras(), pose_3d=again(seen), pose_2d=again(pixels), camera_id=ids // FRAMES % CAMERAS, sequence=ids // (FRAMES * CAMERAS), frame=ids % FRAMES,
                          subject=0 * ids, action=0 * ids, subject_names=("S1",), action_names=("Walking",), sequence_names=tuple(f"Walking {k}" for k in range(SEQUENCES)), frame_rate=50.)

@pytest.mark.alone
def test_a_set_of_1_56_million_samples(tmp_path):
    path = tmp_path / "big.safetensors"
    try:
        began = time.perf_counter()
        poses = big_set()
        save(poses, path)
        assert time.perf_counter() - began < 60
        assert len(poses) == 1_560_000 and path.stat().st_size < 700e6 and psutil.Process().memory_info().rss < 3e9
        expected = (len(poses), 17, SEQUENCES, poses.fingerprint, "big"), poses.pose_3d[0].tolist(), poses.pose_2d[-1].tolist()
        del poses
        runs = [subprocess.run([sys.executable, "-c", OPEN, str(path)], capture_output=True, text=True, check=True, timeout=120) for _ in range(3)]
    finally: path.unlink(missing_ok=True)
    found = [json.loads(run.stdout) for run in runs]
    assert all((tuple(f["facts"]), f["first"], f["last"]) == expected for f in found)
    assert min(f["seconds"] for f in found) < 0.5, found
    assert max(f["opened"] for f in found) < 50e6 and max(f["touched"] for f in found) < 60e6, found
    assert min(f["read"] for f in found) > 200e6, found # or the memory would not have been measured at all
