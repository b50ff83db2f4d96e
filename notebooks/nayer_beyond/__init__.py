"""Methods beyond Table 1: students on few levels (Table 9, notebook 07), what came after the paper (notebook 08)."""
