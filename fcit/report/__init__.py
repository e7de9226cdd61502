"""Tables and figures from run folders only; nothing here trains or loads a model."""
