"""Who trains when, and when to combine. Plain data and logic: no tensor, clock or thread in this folder."""
