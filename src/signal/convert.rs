//! Model ↔ LiveKit's messages.
