"Sources of poses, each a module; `doctor` says what a folder or a file of poses holds."

def __getattr__(name: str):
    "`doctor` is looked up when it is first asked for, so that importing one source stays cheap."
    if name != "doctor": raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .diagnosis import doctor
    return doctor
