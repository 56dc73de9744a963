"Reproducible notebooks for 3D human pose estimation; `poseprojects.lift(...)` uses a trained lifter on your own 2D key points."

__version__ = "0.1.0"

def __getattr__(name: str):
    "`lift` is looked up when it is first asked for, so that importing the package stays light."
    if name != "lift": raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module
    return import_module("poseprojects.lift")
