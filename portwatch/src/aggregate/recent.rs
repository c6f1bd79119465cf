//! A table that forgets what was not asked for lately, in constant time and bounded memory.
//!
//! Two generations: what is asked for moves to the younger one, and when that is full the older one goes. What is
//! forgotten depends on the order of the calls alone, never on the order of a hash table, so a replay forgets the same.

use std::collections::HashMap;
use std::hash::Hash;

#[derive(Debug)]
pub struct Recent<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    generation_max: usize,
    forgotten: u64,
}

impl<K: Hash + Eq + Clone, V> Recent<K, V> {
    /// At most `max` entries.
    pub fn new(max: usize) -> Self {
        Recent { young: HashMap::new(), old: HashMap::new(), generation_max: (max / 2).max(1), forgotten: 0 }
    }

    /// Looks an entry up, which keeps it.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        if !self.young.contains_key(key) {
            let value = self.old.remove(key)?;
            self.put(key.clone(), value);
        }
        self.young.get_mut(key)
    }

    /// Looks without keeping.
    pub fn peek(&self, key: &K) -> Option<&V> {
        self.young.get(key).or_else(|| self.old.get(key))
    }

    pub fn insert(&mut self, key: K, value: V) {
        self.old.remove(&key);
        self.put(key, value);
    }

    /// All entries, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.young.iter().chain(&self.old)
    }

    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Entries dropped for want of room.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    pub fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
    }

    fn put(&mut self, key: K, value: V) {
        if self.young.len() >= self.generation_max && !self.young.contains_key(&key) {
            let young = std::mem::take(&mut self.young);
            self.forgotten += std::mem::replace(&mut self.old, young).len() as u64;
        }
        self.young.insert(key, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_stays_and_the_rest_is_counted() {
        let mut recent = Recent::new(100);
        recent.insert(0, "kept");
        for key in 1..1_000 {
            recent.insert(key, "");
            assert_eq!(recent.get_mut(&0).copied(), Some("kept"));
            assert!(recent.len() <= 100);
        }
        assert_eq!(recent.forgotten() + recent.len() as u64, 1_000);
        assert_eq!(recent.peek(&1), None);
    }
}
