"""HTTP: routes, authorization, problems."""
