"""Student, oracle, policy, teacher: job by job, step by step."""
