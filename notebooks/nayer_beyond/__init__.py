"""Methods beyond Table 1: students on few levels (Table 9, notebook 07), controls, and later papers (notebook 08)."""
