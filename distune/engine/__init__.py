"""The master: scheduler, stages, tuner and the choice among trials that meet."""
