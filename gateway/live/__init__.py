"""Connected devices."""
