"A small made-up pack in the layout of the CMU recordings, for tests that must not need the real one."
import csv
from pathlib import Path

import numpy as np
from poseprojects.data.acclaim import NODES, forward_kinematics, mannequin, marching, write_amc, write_asf

SUBJECT, TRIAL = "02", "02_01"

def make_pack(
    root: Path,           # folder to fill
    subjects=(SUBJECT,),  # one recording each
    frames: int = 40,
    stature: float = 1.75,
) -> Path:
    "Writes skeletons, motions and trials.csv; returns the folder."
    rows = []
    for subject in subjects:
        (root / subject).mkdir(parents=True)
        body = mannequin(subject, stature)
        march = marching(body, frames)
        write_asf(root / subject / f"{subject}.asf", body)
        write_amc(root / subject / f"{subject}_01.amc", body, march)
        joints = forward_kinematics(body, march)
        feet = joints[:, [NODES.index(s + b) for s in "lr" for b in ("tibia", "foot", "toes")], 1].min(1)
        rows.append(dict(file=f"{subject}/{subject}_01.amc", subject=subject, trial="01", action="walk, marching", frames=frames, frame_rate_hz=120,
                         root_height_m=f"{np.median(joints[:, 0, 1]):.2f}", lowest_foot_joint_m=f"{np.median(feet):.2f}"))
    with open(root / "trials.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return root
