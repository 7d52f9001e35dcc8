//! The index: folds the configuration log and the registered workloads into the [`World`], and says what each change
//! touched.

mod world;
mod worlds;

pub use self::{
    world::{
        Dirty, EndpointEntry, EndpointPort, ObjectKey, ServiceEntry, ServiceKey, Update, WorkloadEntry,
        WorkloadPort, World,
    },
    worlds::{Change, Subscription, Worlds},
};
