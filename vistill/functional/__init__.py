"""Pure tensor math on torch alone: no state, no logging, no moves between devices."""
