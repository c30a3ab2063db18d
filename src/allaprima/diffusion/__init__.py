"""Schedules, predictions, the denoiser, guidance, rollback, solvers."""
