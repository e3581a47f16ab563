"""How a stack of lanes is computed."""
