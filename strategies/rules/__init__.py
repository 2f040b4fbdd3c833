"""N updates to one: what the answers of a cohort are worth together."""
