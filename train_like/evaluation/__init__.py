"""The evaluation: what is scored (`cases`, `texts`, `settings`), by which maps (`maps`), stage by stage (`stages`)."""
