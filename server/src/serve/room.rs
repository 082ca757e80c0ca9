//! How many connections there may be, and from where.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Room for connections.
#[derive(Clone, Debug)]
pub(super) struct Room {
    most: u32,
    most_per_address: u32,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    all: u32,
    by_address: HashMap<IpAddr, u32>,
}

/// Room for one connection, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    address: IpAddr,
    taken: Arc<Mutex<Taken>>,
}

impl Room {
    pub(super) fn new(most: u32, most_per_address: u32) -> Self {
        Self { most, most_per_address, taken: Arc::default() }
    }

    /// Room for one more from that address.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn take(&self, address: IpAddr) -> Result<Place, String> {
        let address = address.to_canonical();
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.all >= self.most {
            return Err(format!("there are {} connections already (--max-connections)", taken.all));
        }
        let here = taken.by_address.get(&address).copied().unwrap_or(0);
        if here >= self.most_per_address && !address.is_loopback() {
            return Err(format!(
                "its address has {here} connections already (--max-connections-per-address)"
            ));
        }
        taken.all += 1;
        taken.by_address.insert(address, here + 1);
        Ok(Place { address, taken: self.taken.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all -= 1;
        if let Some(here) = taken.by_address.get_mut(&self.address) {
            *here -= 1;
            if *here == 0 {
                taken.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_all_the_room() {
        let room = Room::new(4, 2);
        let (a, b): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "::ffff:192.0.2.1".parse().unwrap());
        let first = room.take(a).unwrap();
        let _second = room.take(b).unwrap();
        let why = room.take(a).unwrap_err();
        assert_eq!(why, "its address has 2 connections already (--max-connections-per-address)");
        let loopback = "127.0.0.1".parse().unwrap();
        let here: Vec<Place> = (0..2).map(|_| room.take(loopback).unwrap()).collect();
        assert_eq!(
            room.take("192.0.2.2".parse().unwrap()).unwrap_err(),
            "there are 4 connections already (--max-connections)"
        );
        drop(here);
        drop(first);
        let _third = room.take(a).unwrap();
    }

    #[test]
    fn who_has_gone_is_not_remembered() {
        let room = Room::new(4, 2);
        drop(room.take("192.0.2.1".parse().unwrap()).unwrap());
        assert!(room.taken.lock().unwrap().by_address.is_empty());
    }
}
