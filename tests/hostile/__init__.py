"""Programs that run code of their own in the middle of a step.

A program is a point (where its code runs), an action (what that code does there) and a form (which
optimizer, how it is called). `points.py`, `actions.py` and `forms.py` are the tables: a new kind is
a new line. `judge.py` runs a program with mlx.optimizers and with mlx_opt and compares the two.

Each program runs in a process of its own, forked from a server that has imported MLX and evaluated
nothing (`server.py`). All of it runs on the CPU: a process that has used a GPU cannot be forked.

One program by its name, with what it printed and what is wrong with it:

    python -m hostile.judge schedule/moment-gone/AdamW,alone,update,plain,1,nothing,first,0
"""
