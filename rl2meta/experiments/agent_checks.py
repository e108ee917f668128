"""The conformance suite of agents: whoever adds one runs ``check_agent`` on it."""
