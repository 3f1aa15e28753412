"""What this machine is, how fast it is, which of its devices compute. Decisions are pure, on recordings."""
