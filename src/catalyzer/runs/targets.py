"""Names of what `src/reproduce.py` can make, in a module that imports nothing: its help lists them at once."""

PAPER_TARGETS = (
    "table1", "table2", "table3", "figure2", "figure3", "figure4", "figure5", "figure6", "figure7", "large_scale",
)  # fmt: skip
"""The paper's tables and figures, in the order of the report."""

TARGET_NAMES = (*PAPER_TARGETS, "two_stages")
