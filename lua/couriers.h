/* couriers.h: what a box of class QML_COURIERS points to. */
#ifndef QML_COURIERS_H
#define QML_COURIERS_H

#include "../core/courier.h"

#define QML_DEVICE "qmoon.device"

typedef struct qml_couriers {
    int n;
    qm_courier *courier[];
} qml_couriers;

#endif
