"""Where things are kept. It knows nothing of videos; `documents` and `objects` are the two contracts."""
