"""Pure tensor math on torch only: no state, no logging, no device moves."""
