"""What the paper saw when it looked inside a teacher and its student (arXiv 2312.10835, section 3, appendices B and D).

One file an observation: `distance`, `complexity`, `prompts`, `curvature`, `decisions`, `diversity`. `painting` paints and
watches, `pairs` holds what was measured, `association` and `bands` are the statistics, `plots` and `report` show it.
"""
