"""The cascade for many callers: their jobs share batches step by step, and each picture is the one it would be alone."""
