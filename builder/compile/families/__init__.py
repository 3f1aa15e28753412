"""Model families: one file each with its shapes, weight names and graph; other files hold what they share."""
