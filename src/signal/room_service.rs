//! LiveKit's `RoomService` over Twirp: request bytes into a command or a query, results into bytes.
