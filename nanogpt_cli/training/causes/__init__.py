"""Why a run's loss jumped: what left its band first, which change cures it, which documents.

``record`` and ``chain`` read the log alone; ``rerun`` makes the run's steps again from a
checkpoint; ``trials`` and ``search`` make them with one change each; ``documents`` looks at one
step's sequences; ``diagnosis`` puts it all together. ``live`` names the origin in alarms while the
run trains. Nothing here writes.
"""
